"""The daemon: who may call, what a call becomes, what callers can make it hold, and how it starts and ends."""
