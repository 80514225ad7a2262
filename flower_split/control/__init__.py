"""The control port: how a strategy has its run hosted by a trunk service, at both of its ends.

The strategy's end is a `RunTrunk` of its own (`service_trunk`); the service's end keeps the runs
on one copy of the weights (`served_runs`) and answers calls (`service`).
"""
