import { connect, createServer, type AddressInfo, type Socket } from "node:net";

/**
 * Forwards connections to a loopback port. While it is stopped, it behaves like a suspended process: connections are accepted, and
 * nothing is answered.
 */
export class Relay {
  /** The number of connections that were accepted so far. */
  accepted = 0;
  #target = 0;
  #resumed = Promise.resolve();
  #resume = () => {};
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((socket) => void this.#forward(socket));

  async start(target: number): Promise<string> {
    this.#target = target;
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  stop(): void {
    this.#resumed = new Promise((resolve) => (this.#resume = resolve));
  }

  resume(): void {
    this.#resume();
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  async #forward(socket: Socket): Promise<void> {
    this.accepted += 1;
    this.#sockets.add(socket);
    socket.on("error", () => {});
    await this.#resumed;
    const there = connect(this.#target, "127.0.0.1");
    this.#sockets.add(there);
    there.on("error", () => {});
    await Promise.all([this.#copy(socket, there), this.#copy(there, socket)]).catch(() => {});
    socket.destroy();
    there.destroy();
  }

  async #copy(from: Socket, to: Socket): Promise<void> {
    for await (const data of from) {
      await this.#resumed;
      to.write(data);
    }
    to.end();
  }
}
