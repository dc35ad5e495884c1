"""A mail server for tests: takes mails, keeps each in a file. Standard library only."""

import base64
import os
import socketserver
import ssl
import sys
import threading

port, mode, directory, certificate, key = sys.argv[1:6]
login = sys.argv[6:8]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
lock = threading.Lock()
count = 0


def keep(sender, receivers, mail):
    global count
    with lock:
        count += 1
        path = os.path.join(directory, "%06d" % count)
    with open(path + ".part", "wb") as file:
        file.write((sender + "\n" + "\n".join(receivers) + "\n\n").encode() + mail)
    os.rename(path + ".part", path + ".mail")


class Session(socketserver.BaseRequestHandler):
    def say(self, text):
        self.request.sendall(text.encode() + b"\r\n")

    def handle(self):
        secure = mode == "implicit"
        if secure:
            self.request = context.wrap_socket(self.request, server_side=True)
        lines = self.request.makefile("rb")
        known, sender, receivers = not login, None, []
        self.say("220 test")
        while line := lines.readline():
            text = line.decode().strip()
            verb = text.upper().split(" ")[0]
            if verb in ("EHLO", "HELO"):
                extras = ["test", "8BITMIME"]
                if mode == "starttls" and not secure:
                    extras.append("STARTTLS")
                elif login:
                    extras.append("AUTH PLAIN")
                for extra in extras[:-1]:
                    self.say("250-" + extra)
                self.say("250 " + extras[-1])
            elif verb == "STARTTLS" and mode == "starttls":
                self.say("220 go ahead")
                self.request = context.wrap_socket(self.request, server_side=True)
                lines, secure = self.request.makefile("rb"), True
            elif mode == "starttls" and not secure:
                self.say("530 STARTTLS first")
            elif verb == "AUTH":
                given = base64.b64decode(text.split(" ")[2]).decode().split("\0")[1:]
                known = given == login
                self.say("235 welcome" if known else "535 wrong password " + given[1])
            elif not known:
                self.say("530 log in first")
            elif verb == "MAIL":
                sender, receivers = text, []
                self.say("250 ok")
            elif verb == "RCPT":
                if "refused@" in text:
                    self.say("550 no such user")
                elif "busy@" in text:
                    self.say("451 later")
                else:
                    receivers.append(text)
                    self.say("250 ok")
            elif verb == "DATA":
                self.say("354 go on")
                mail = b""
                while (line := lines.readline()) not in (b".\r\n", b""):
                    mail += line
                keep(sender, receivers, mail)
                self.say("250 taken")
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("127.0.0.1", int(port)), Session) as server:
    print("listening", flush=True)
    server.serve_forever()
