"""The host: names, files and their locks, shared memory, and closing at the end of a process."""
