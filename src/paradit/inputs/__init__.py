"""Pictures and videos that a request gives: checks of their files, and their frames at a size. Torch-free."""
