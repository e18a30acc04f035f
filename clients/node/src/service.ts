import { fromBinary, toBinary, type DescMessage, type DescMethod, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import { makeClientConstructor, type Client, type MethodDefinition, type ServiceDefinition } from "@grpc/grpc-js";
import { DiscoveryService } from "./gen/milo/discovery/v1/discovery_pb.js";

/** The service definition for grpc-js, built from the generated descriptor. */
export const definition: ServiceDefinition = Object.fromEntries(
  DiscoveryService.methods.map((method) => [
    method.localName,
    {
      path: `/${DiscoveryService.typeName}/${method.name}`,
      requestStream: false,
      responseStream: method.methodKind === "server_streaming",
      ...codec("request", method.input),
      ...codec("response", method.output),
    } as MethodDefinition<unknown, unknown>,
  ]),
);

function codec(direction: "request" | "response", schema: DescMessage): Record<string, unknown> {
  return {
    [`${direction}Serialize`]: (message: MessageShape<DescMessage>) => Buffer.from(toBinary(schema, message)),
    [`${direction}Deserialize`]: (bytes: Uint8Array) => fromBinary(schema, bytes),
  };
}

const Service = makeClientConstructor(definition, DiscoveryService.typeName);

/** Create a client with its own connection: by default, grpc-js shares one, with its backoff, between clients. */
export function connect(...[address, credentials]: ConstructorParameters<typeof Client>): InstanceType<typeof Service> {
  return new Service(address, credentials, {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000, // the daemon is on the same host or network: reconnect soon after it restarts
    "grpc.enable_http_proxy": 0,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.client_idle_timeout_ms": 60_000,
    "grpc.max_receive_message_length": 64 << 20,
  });
}

export type Connection = ReturnType<typeof connect>;
type Methods = (typeof DiscoveryService)["method"];
export type Unary = Exclude<keyof Methods, "watchClusters">;
export type Input<Name extends Unary> = Methods[Name] extends DescMethod ? MessageInitShape<Methods[Name]["input"]> : never;
export type Output<Name extends Unary> = Methods[Name] extends DescMethod ? MessageShape<Methods[Name]["output"]> : never;
