"""Launching: jobs of a folder, who works on which, and how work survives its process."""
