//! Calls to managers about services.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{BalanceChange, EndpointMode, Port, Probe};

/// Parameters of `service_create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceCreate {
    /// Name.
    pub name: String,
    /// Networks by name or id; empty means `ingress`.
    pub networks: Vec<String>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// How the name resolves.
    pub mode: EndpointMode,
    /// How new flows are distributed.
    pub balance: BalanceChange,
    /// How backends are checked. Without a probe they are not checked.
    pub health: HealthChange,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How long draining backends keep their flows, in milliseconds; `None`: 5000.
    pub drain_ms: Option<u64>,
}

/// Parameters of `service_update`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceUpdate {
    /// Name, id or beginning of an id of the service.
    pub reference: String,
    /// Ports to publish.
    pub publish_add: Vec<Port>,
    /// Published ports to remove, by published port (or target, if that is unambiguous) and
    /// protocol.
    pub publish_remove: Vec<Port>,
    /// Changes of how new flows are distributed.
    pub balance: BalanceChange,
    /// Changes of how backends are checked.
    pub health: HealthChange,
    /// Labels to set.
    pub label_add: BTreeMap<String, String>,
    /// Labels to remove.
    pub label_remove: Vec<String>,
    /// New drain time in milliseconds.
    pub drain_ms: Option<u64>,
}

/// Health check settings of `service_create` and `service_update`. A setting that is `None` stays
/// unchanged. A new check has an interval of 5 s, a timeout of 2 s, 3 retries and no start period.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthChange {
    /// Remove the check. Excludes all other settings.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
    /// The probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Time from the end of one check to the start of the next, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Longest duration of a check, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Failures in a row that make a backend unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Time after a backend's start in which failures do not count, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
}
