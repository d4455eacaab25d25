"""The Unix socket between a publisher and its subscribers: handshake, descriptors, liveness.

While a subscriber's connection is open it is alive; when it hangs up, for whatever reason, its place in the ring is
cleared. Frames never travel here.
"""
