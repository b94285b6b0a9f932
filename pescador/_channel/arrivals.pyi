class Arrivals:
    tag: int
    size: int
