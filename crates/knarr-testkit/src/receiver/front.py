"""TLS in front of a plain server, for tests. Standard library only."""

import socket
import socketserver
import ssl
import sys
import threading

port, upstream, certificate, key = sys.argv[1:5]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Session(socketserver.BaseRequestHandler):
    def handle(self):
        client = context.wrap_socket(self.request, server_side=True)
        server = socket.create_connection(("127.0.0.1", int(upstream)))
        there = threading.Thread(target=pump, args=(client, server), daemon=True)
        there.start()
        pump(server, client)
        client.close()
        server.close()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("127.0.0.1", int(port)), Session) as server:
    print("listening", flush=True)
    server.serve_forever()
