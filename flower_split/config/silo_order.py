"""The order of silos: by name, everywhere where one is drawn, added up or shown before another."""


def silo_order(name: str) -> tuple[bool, int, str]:
    """Key by which names of silos are sorted: numbers by their value, then all other names."""
    number = name.isdecimal()
    return not number, int(name) if number else 0, name
