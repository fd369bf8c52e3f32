"""Writing and reading of videos: MP4, WebM, MOV, MKV, GIF, PNG folders, contact sheets. Torch-free."""
