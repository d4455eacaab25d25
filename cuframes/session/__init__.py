"""The Unix socket between a publisher and its subscribers: handshake, descriptors, liveness.

A subscriber is alive while its connection is open. When the connection ends, for whatever reason, the subscriber's
place in the ring is cleared. Frames never travel over the socket.
"""
