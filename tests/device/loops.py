"""placeholder"""


def measure():
    return {}
