"""Methods of denoising: what each can do, checks and shows, without torch. See `paradit.sampling` for how."""
