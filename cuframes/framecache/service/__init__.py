"""The framecache service: creates, lists and removes slots over HTTP, and shows them on a page.

Writers and readers do not depend on it. It keeps nothing that it could not find again in the slots' directory, so that
it can be killed and started at any time.
"""

from cuframes.framecache.service.app import create_app
from cuframes.framecache.service.registry import Registry
from cuframes.framecache.service.run import serve

__all__ = ["Registry", "create_app", "serve"]
