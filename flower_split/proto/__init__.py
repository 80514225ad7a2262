"""The wire format, generated from `protos/`; regenerate it, never edit it."""
