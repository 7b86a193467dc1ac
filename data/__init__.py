"""Sources of samples, and their batches. Whatever is wrong with a user's files or flags is a `UserError`."""
