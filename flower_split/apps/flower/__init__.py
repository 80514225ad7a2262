"""Flower's own programs: its commands, a SuperLink for one run, a deployment's runs, their logs."""
