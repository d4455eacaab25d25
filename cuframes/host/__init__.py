"""What this host has: names, files and their locks, shared memory, and what lives until the process ends."""
