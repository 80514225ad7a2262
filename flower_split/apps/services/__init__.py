"""Services as processes of their own: the trunk's, and what each of them tells systemd."""
