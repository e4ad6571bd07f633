"""UDP proxying in HTTP, written from the specifications and independent of anyreach.

Clients over HTTP/3 (aioquic and qh3) and HTTP/2 (hyper-h2), and a proxy over both, for RFC 9298
with the bind extension (draft-ietf-masque-connect-udp-listen). Tests hold them to each other, and
anyreach to them.
"""
