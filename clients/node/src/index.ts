export { projectOf, type ReviewedUser } from "./admission.js";
export { DiscoveryClient } from "./client.js";
export type { Filter, WatchOptions } from "./options.js";
export { credentialsFromEnvironment, type Credentials } from "./credentials.js";
export { DiscoveryError, InvalidCredentials, StatusError, UnusableKubeconfig } from "./errors.js";
export { Fleet, type EngagedCluster, type FleetOptions, type Handler } from "./fleet.js";
export { Credential } from "./credential.js";
export type { DisengageReasonName, Event } from "./session.js";
export type { Watch } from "./watch.js";
export type * from "./gen/milo/discovery/v1/discovery_pb.js";
export {
  ClusterEvent_Type,
  Connectivity_State,
  DisengageReason,
  Engagement_Reason,
  KubeconfigFormat,
  SourceStatus_State,
} from "./gen/milo/discovery/v1/discovery_pb.js";
