"""What a split run needs beside any Flower strategy: the trunk's host, and who is invited to it.

Messages get their invitations here, and replies their trunk's part, or the reason why they do not
count. What silos are asked to train is no affair of this package.
"""
