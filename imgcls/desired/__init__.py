"""`imgcls apply`: a file says which versions there shall be, and the gateway is brought there in a safe order.

file.py        the wish, read and written
difference.py  what is missing between the wish and what is, as pure functions
applying.py    making it so: load, move requests, drain, take away, scale
"""
