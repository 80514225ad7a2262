"""An app's folder: its settings, and the archive of it that is sent to all parties."""
