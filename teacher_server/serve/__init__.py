"""The daemon: who may call, what a call becomes, what callers can make it hold, and how it starts and ends.

run           from the start to the end of the process      lifecycle, memory, keeping, config
server        the gRPC server                               limits, security, health; exposition over HTTP
interceptors  around every call: counts, errors -> status
service       decode -> check -> batcher -> encode          checks, callers, quotas, spans
stream        many requests on one call                     credits: flow control
"""
