"""The extension modules beside ``cuframes._core``: what has to be fast, or has to be C.

From below: ``status``; ``mapping`` and ``control`` (segments); ``layout`` and ``source`` (pictures in host memory);
``cuda`` (the driver), ``slot_table``, ``pending``; then ``_core``; ``views``, ``device_source``, ``frame``; the rings
``packets`` and ``slot``; ``wait_any``.
"""
