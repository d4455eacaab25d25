"""The extension modules beside ``cuframes._core``: what has to be fast, or has to be C.

From below: ``status`` and ``cuda`` (the driver); ``mapping``, ``pending``; ``views``, ``source``, ``frame``; the rings
``packets`` and ``slot``; ``wait_any``.
"""
