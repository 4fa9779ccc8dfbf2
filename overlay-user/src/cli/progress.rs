//! A progress message for operations that take longer than a second.

use std::{future::Future, io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::Context;
use crate::api::{Request, Sync, SyncAnswer};

/// How long something may take before it is said.
const QUIET: Duration = Duration::from_secs(1);

/// Waits for `work`; from the first second on a spinner with `message` turns on stderr, if that is
/// a terminal.
pub(super) async fn wait_for<T>(message: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(QUIET) => {}
    }
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// How long commands that change the cluster wait for every node to show it.
const SETTLE_MS: u64 = 10_000;

/// Waits until every ready node's datapath has the newest state. The request itself has succeeded
/// in any case, so a node that lags is reported on stderr and is no failure.
pub(super) async fn settle(context: &Context) {
    let client = context.client();
    let request = Request::Sync(Sync { revision: None, timeout_ms: SETTLE_MS });
    let answer = client.call::<SyncAnswer>(request);
    match wait_for("waiting until every node shows it", answer).await {
        Ok(answer) if answer.lagging.is_empty() => {}
        Ok(answer) => eprintln!(
            "overlay: warning: done, but these nodes do not show it yet: {}",
            answer.lagging.join(", ")
        ),
        Err(error) => eprintln!("overlay: warning: done, but not every node may show it: {error}"),
    }
}
