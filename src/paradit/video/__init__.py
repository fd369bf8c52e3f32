"""Writing and reading video: MP4, WebM, GIF, PNG folders, contact sheets. Torch-free."""
