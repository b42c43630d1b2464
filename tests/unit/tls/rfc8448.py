"""RFC 8448, section 3: what the two ends of "Simple 1-RTT Handshake" send under traffic keys."""

from __future__ import annotations

from handfast.tls.session import Direction, Role, Session

CLIENT_SECRET = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
SERVER_SECRET = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
CLIENT_KEY = bytes.fromhex("17422dda596ed5d9acd890e3c63f5051")
CLIENT_IV = bytes.fromhex("5b78923dee08579033e523d9")
SERVER_KEY = bytes.fromhex("9f02283b6c9c07efc26bb9f2ac92e356")
SERVER_IV = bytes.fromhex("cf782b88dd83549aadf1e984")

PAYLOAD = bytes(range(50))

# The server's records of sequence numbers 0, 1 and 2, the client's of 0 and 1.
TICKET = bytes.fromhex(
    "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c758db"
    "289a015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6c0d4a3"
    "d03f75e09c30ba1e62972ac46f75f7b981be63439b2999ce13064615139891d5e4c5b406f16e3fc181a77ca47584"
    "0025db2f0a77f81b5ab05b94c01346755f69232c86519d86cbeeac87aac347d143f9605d64f650db4d023e70e952"
    "ca49fe5137121c74bc2697687e248746d6df353005f3bce18696129c8153556b3b6c6779b37bf15985684f"
)
SERVER_DATA = bytes.fromhex(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a"
    "59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d"
)
SERVER_CLOSE = bytes.fromhex("1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9")
CLIENT_DATA = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a2044"
    "1e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4"
)
CLIENT_CLOSE = bytes.fromhex("1703030013c9872760655666b74d7ff1153efd6db6d0b0e3")


def server() -> Session:
    """The server after its ticket."""
    return Session(
        Role.SERVER,
        0x1301,
        Direction(bytearray(CLIENT_SECRET)),
        Direction(bytearray(SERVER_SECRET), 1),
    )


def client() -> Session:
    return Session(
        Role.CLIENT,
        0x1301,
        Direction(bytearray(SERVER_SECRET)),
        Direction(bytearray(CLIENT_SECRET)),
    )
