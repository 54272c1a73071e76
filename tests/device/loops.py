"""placeholder"""
def measure(): return {}
