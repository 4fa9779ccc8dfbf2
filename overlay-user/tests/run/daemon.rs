//! A daemon that says yes, or what the test wants, and writes down what it was asked.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// What the daemon is to answer, and what it was asked.
pub(crate) struct Script {
    /// Answers by method; an answer with a `code` is an error.
    pub answers: Mutex<BTreeMap<&'static str, Value>>,
    /// Calls in their order.
    pub calls: Mutex<Vec<(String, Value)>>,
    /// A drain takes one of these.
    pub drains: Semaphore,
}

/// The daemon; its socket goes with the test's directory.
pub(crate) struct Daemon {
    pub script: Arc<Script>,
    _runtime: tokio::runtime::Runtime,
}

impl Daemon {
    /// Starts it in a run directory.
    pub fn start(run_dir: &Path) -> Self {
        std::fs::create_dir_all(run_dir).expect("a directory");
        let attached = json!({
            "container": "0123456789abcdefghijklmno",
            "name": "web",
            "interfaces": [{
                "interface": "eth0",
                "network": "mynet",
                "address": "10.0.0.5/24",
                "mac": "02:42:0a:00:00:05",
                "gateway": "10.0.0.1",
                "mtu": 1450,
                "endpoint": "endpoint",
            }],
            "ports": [],
        });
        let answers = BTreeMap::from([
            ("attach", attached),
            ("drain", json!({"lagging": [], "drained_ms": 0})),
            ("detach", json!([])),
        ]);
        let script = Arc::new(Script {
            answers: Mutex::new(answers),
            calls: Mutex::default(),
            drains: Semaphore::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let router =
            Router::new().route("/v1/local/{method}", post(answer)).with_state(script.clone());
        let socket = run_dir.join("overlay.sock");
        let _guard = runtime.enter();
        let listener = tokio::net::UnixListener::bind(socket).expect("bound");
        runtime.spawn(async move { axum::serve(listener, router).await });
        drop(_guard);
        Self { script, _runtime: runtime }
    }

    /// Sets the answer to a method.
    pub fn answer(&self, method: &'static str, answer: Value) {
        self.script.answers.lock().expect("unpoisoned").insert(method, answer);
    }

    /// The methods called so far.
    pub fn methods(&self) -> Vec<String> {
        let calls = self.script.calls.lock().expect("unpoisoned");
        calls.iter().map(|(method, _)| method.clone()).collect()
    }

    /// The parameters of the first call of a method.
    pub fn params(&self, method: &str) -> Value {
        let calls = self.script.calls.lock().expect("unpoisoned");
        let call = calls.iter().find(|(called, _)| called == method);
        call.unwrap_or_else(|| panic!("{method} was not called")).1.clone()
    }
}

async fn answer(
    State(script): State<Arc<Script>>,
    UrlPath(method): UrlPath<String>,
    Json(mut params): Json<Value>,
) -> Response {
    if let Some(netns) = params.get("netns").and_then(Value::as_str) {
        // What the namespace is can only be seen while the command lives.
        let netns = std::fs::read_link(netns).map(|link| link.display().to_string());
        params["seen"] = netns.unwrap_or_default().into();
    }
    script.calls.lock().expect("unpoisoned").push((method.clone(), params));
    if method == "drain" {
        script.drains.acquire().await.expect("open").forget();
    }
    let answers = script.answers.lock().expect("unpoisoned");
    match answers.get(method.as_str()) {
        Some(answer) if answer.get("code").is_some() => {
            (StatusCode::CONFLICT, Json(answer.clone())).into_response()
        }
        Some(answer) => Json(answer.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
