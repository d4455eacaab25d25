"""Packets to files and frames to pictures, through PyAV."""
