"""The extension modules beside ``cuframes._core``: what has to be fast, or has to be C.

From below: ``status``; ``mapping`` and ``control`` (segments); ``layout`` and ``arrays`` (array-likes in host memory);
``cuda`` (the driver), ``slot_table``, ``pending``; then ``_core``; ``views``, ``device_arrays``, ``frame``; the rings
``packets`` and ``slot``; ``wait_any``.
"""
