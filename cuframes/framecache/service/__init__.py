"""The framecache service: creates, lists and removes slots over HTTP, and shows them on a page.

Writers and readers do not depend on the service. All its state can be found again in the slots' directory, so it can be
killed and restarted at any time.
"""

from cuframes.framecache.service.app import create_app
from cuframes.framecache.service.registry import Registry
from cuframes.framecache.service.run import serve

__all__ = ["Registry", "create_app", "serve"]
