//! Takes this host out of the cluster and everything of ours out of its kernel.

use std::{path::Path, sync::Arc};

use super::{error::AgentError, host::remove_from_kernel, run::Agent};
use crate::{
    api::{ApiError, ErrorCode, Leave, Left, NodeRemove, Request},
    datapath::Datapath,
    link::Links,
    model::{Node, Role},
};

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Detaches all containers, removes the node from the cluster, then links, programs, pins and
    /// files. If an object cannot be removed, the call removes the others and then returns an
    /// error. It leaves the state directory as it is in that case, so that it can be repeated.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`] without `force` while containers are attached or on the last
    /// manager; otherwise the objects that could not be removed.
    pub async fn leave(self: &Arc<Self>, request: Leave) -> Result<Left, ApiError> {
        if !request.force {
            self.may_leave()?;
        }
        let (mut removed, mut failures) = self.attachments.detach_all().await;
        match self.leave_cluster(request.force).await {
            Ok(what) => removed.extend(what),
            Err(error) if request.force => tracing::warn!("leaving without the managers: {error}"),
            Err(error) => return Err(error),
        }
        self.host.close().await;
        match self.context.names.end().await {
            Ok(what) => removed.extend(what),
            Err(error) => failures.push(error),
        }
        let (gone, more) = remove_from_kernel(&self.context).await;
        removed.extend(gone);
        failures.extend(more);
        if !failures.is_empty() {
            let failures: Vec<_> = failures.iter().map(ToString::to_string).collect();
            return Err(ApiError::new(
                ErrorCode::Internal,
                format!("not everything could be removed: {}", failures.join("; ")),
            )
            .hint("put that right and run `overlay leave --force` again"));
        }
        removed.extend(self.remove_files().await?);
        Ok(Left { removed })
    }

    fn may_leave(&self) -> Result<(), ApiError> {
        let containers = self.attachments.containers.all();
        let mut names: Vec<_> = containers.iter().map(|c| c.record().name).collect();
        if !names.is_empty() {
            names.sort();
            let message = format!("containers are attached on this host: {}", names.join(", "));
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .hint("detach them first, or leave with --force"));
        }
        if self.is_last_manager() {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                "this node is the last manager: the cluster ends with it",
            )
            .hint("leave with --force to end the cluster"));
        }
        Ok(())
    }

    fn is_last_manager(&self) -> bool {
        let state = self.cluster.state();
        let others = |n: &Node| n.role == Role::Manager && n.id != *self.context.node();
        self.context.config.role == Role::Manager && !state.nodes.values().any(others)
    }

    async fn leave_cluster(&self, force: bool) -> Result<Vec<String>, ApiError> {
        if self.is_last_manager() {
            return Ok(vec!["the cluster, with its last manager".to_owned()]);
        }
        let remove = NodeRemove { reference: self.context.node().as_str().to_owned(), force: true };
        match self.context.call::<Node>(Request::NodeRemove(remove)).await {
            Ok(node) => Ok(vec![format!("node {} of the cluster", node.name)]),
            Err(error) if error.code == ErrorCode::NotFound => Ok(Vec::new()),
            Err(error) if force => Err(error),
            Err(error) => Err(ApiError {
                hint: Some(
                    "leave with --force to leave without telling the managers; then remove the \
                     node there with `overlay node rm --force`"
                        .to_owned(),
                ),
                ..error
            }),
        }
    }

    async fn remove_files(&self) -> Result<Vec<String>, AgentError> {
        self.cache.close().await;
        let paths = &self.context.paths;
        let files = [
            paths.store(),
            paths.cached_state(),
            paths.containers(),
            paths.log(),
            // Last: as long as it exists the call can be repeated after a restart.
            paths.config(),
        ];
        let mut removed = Vec::new();
        if remove(&paths.pki_dir(), |path| std::fs::remove_dir_all(path))? {
            removed.push(paths.pki_dir().display().to_string());
        }
        for file in files {
            if remove(&file, |path| std::fs::remove_file(path))? {
                removed.push(file.display().to_string());
            }
        }
        // It stays when something else is in it.
        if std::fs::remove_dir(&paths.state_dir).is_ok() {
            removed.push(paths.state_dir.display().to_string());
        }
        Ok(removed)
    }
}

/// Returns whether there was something to remove.
fn remove(
    path: &Path,
    remove: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<bool, AgentError> {
    match remove(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(AgentError::io(path, e)),
    }
}
