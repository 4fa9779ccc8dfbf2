//! Checks the health of this node's backends and reports changes to the managers.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};

use super::containers::Container;
use crate::{
    agent::{context::Context, follow::Cluster, platform::Checked},
    api::{EndpointHealth, Request},
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Endpoint, EndpointState, Health, HealthCheck, Id},
};

/// Checks under way at a time: each has a connection or a process. The others wait for their turn,
/// with which their time begins.
const AT_A_TIME: usize = 64;

const TELLING: &str = "telling the managers of the backends' health";
/// Delay before a report that did not reach the managers is sent again.
const TELL_AGAIN: Duration = Duration::from_millis(500);

/// Makes the health checks of containers.
pub struct HealthChecks<D, L> {
    context: Arc<Context<D, L>>,
    cluster: Arc<Cluster>,
    /// Turns to make a check.
    turns: Semaphore,
}

impl<D: Datapath, L: Links> HealthChecks<D, L> {
    /// Checks nothing yet.
    pub fn new(context: Arc<Context<D, L>>, cluster: Arc<Cluster>) -> Self {
        Self { context, cluster, turns: Semaphore::new(AT_A_TIME) }
    }

    /// Checks a container for as long as it is attached, whenever its service asks for it.
    pub fn watch(self: &Arc<Self>, container: &Arc<Container>) {
        let (checks, watched) = (self.clone(), container.clone());
        let task = tokio::spawn(async move { checks.keep_checking(&watched).await });
        container.keep(task.abort_handle());
    }

    async fn keep_checking(self: &Arc<Self>, container: &Container) {
        let started = Instant::now();
        let mut states = self.cluster.states();
        let mut course: Option<Course> = None;
        loop {
            states.borrow_and_update();
            let state = self.cluster.state();
            let Some((check, endpoint)) = wanted(&state, container.id()) else {
                course = None;
                if states.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let known = course.take().filter(|course| course.check == *check);
            let mut current = known.unwrap_or_else(|| Course::new(check.clone(), endpoint.health));
            let forgiving = started.elapsed() < check.start_period();
            let outcome = self.check_once(container, endpoint, check).await;
            if let Err(why) = &outcome {
                tracing::debug!(container = %endpoint.name, "{}: {why}", check.probe);
            }
            if current.passed(outcome.is_ok(), forgiving) {
                let why = outcome.err().unwrap_or_else(|| "the check passes".to_owned());
                tracing::info!(container = %endpoint.name, "{}: {why}", current.health);
            }
            self.rest(container.id(), &current, &mut states).await;
            course = Some(current);
        }
    }

    /// Waits for the time of the next try, or until the service asks for another check, which is
    /// made at once. Meanwhile the managers are told, again and again until they answer.
    async fn rest(
        &self,
        container: &Id,
        course: &Course,
        states: &mut watch::Receiver<Option<Arc<ClusterState>>>,
    ) {
        let next = Instant::now() + course.check.interval();
        while Instant::now() < next {
            let told = self.tell_health(container, course.health).await;
            let pause = if told { next } else { next.min(Instant::now() + TELL_AGAIN) };
            let other = states.wait_for(|state| {
                let now = state.as_deref().and_then(|state| wanted(state, container));
                now.map(|(check, _)| check) != Some(&course.check)
            });
            tokio::select! {
                () = sleep_until(pause) => {}
                _ = other => return,
            }
        }
    }

    async fn check_once(
        &self,
        container: &Container,
        endpoint: &Endpoint,
        check: &HealthCheck,
    ) -> Result<(), String> {
        let record = container.record();
        let backend = Checked {
            netns: record.netns,
            pid: record.process.map(|process| process.pid),
            address: endpoint.ip.into(),
        };
        // The semaphore lives as long as the agent: an error cannot happen.
        let _turn = self.turns.acquire().await;
        match timeout(check.timeout(), self.context.host.probe(&backend, &check.probe)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no result within {} ms", check.timeout_ms)),
        }
    }

    /// Tells the managers unless they know; returns whether they do.
    async fn tell_health(&self, container: &Id, health: Health) -> bool {
        let state = self.cluster.state();
        let mut mine = state.endpoints.values().filter(|e| e.container == *container);
        if mine.all(|e| e.health == health) {
            return true;
        }
        let request = EndpointHealth { container: container.clone(), health };
        match self.context.call::<Vec<Endpoint>>(Request::EndpointHealth(request)).await {
            Ok(_) => self.context.conditions.clear(TELLING),
            Err(error) => {
                self.context.conditions.fail(TELLING, error);
                return false;
            }
        }
        true
    }
}

/// The check that a container's service asks for, and the endpoint to be checked: the first one
/// that serves. `None` while the container is starting or draining.
fn wanted<'a>(state: &'a ClusterState, container: &Id) -> Option<(&'a HealthCheck, &'a Endpoint)> {
    let mut mine: Vec<&Endpoint> = state
        .endpoints
        .values()
        .filter(|e| e.container == *container && e.state == EndpointState::Running)
        .collect();
    mine.sort_unstable_by_key(|endpoint| endpoint.number);
    mine.into_iter().find_map(|endpoint| {
        let service = state.services.get(endpoint.service.as_ref()?)?;
        Some((service.health.as_deref()?, endpoint))
    })
}

/// The course of one check of one container.
#[derive(Debug)]
struct Course {
    check: HealthCheck,
    health: Health,
    /// Failures since the last success.
    failures: u32,
}

impl Course {
    fn new(check: HealthCheck, health: Health) -> Self {
        Self { check, health, failures: 0 }
    }

    /// Takes in an outcome; returns whether the health is another now. `forgiving` during the start
    /// period, in which failures before the first success do not count.
    fn passed(&mut self, passed: bool, forgiving: bool) -> bool {
        let before = self.health;
        if passed {
            self.failures = 0;
            self.health = Health::Healthy;
        } else if !(forgiving && matches!(before, Health::Starting | Health::Unknown)) {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.check.retries {
                self.health = Health::Unhealthy;
            }
        }
        self.health != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::testing::{TestCluster, id},
        model::Probe,
    };

    fn course(health: Health) -> Course {
        Course::new(HealthCheck { retries: 3, ..HealthCheck::new(Probe::Tcp(80)) }, health)
    }

    fn after(mut course: Course, outcomes: &[bool], forgiving: bool) -> Health {
        for outcome in outcomes {
            course.passed(*outcome, forgiving);
        }
        course.health
    }

    #[test]
    fn failures_in_a_row_make_a_backend_unhealthy_and_one_success_healthy() {
        use Health::{Healthy, Starting, Unhealthy, Unknown};
        for (before, outcomes, expected) in [
            (Starting, &[true][..], Healthy),
            (Starting, &[false, false], Starting),
            (Starting, &[false, false, false], Unhealthy),
            (Healthy, &[false, false, true, false, false], Healthy),
            (Healthy, &[false, false, false], Unhealthy),
            (Unknown, &[false, false], Unknown),
            (Unhealthy, &[false, true], Healthy),
        ] {
            assert_eq!(after(course(before), outcomes, false), expected, "{before} {outcomes:?}");
        }
    }

    #[test]
    fn the_start_period_forgives_only_backends_that_were_never_healthy() {
        let fails = [false; 9];
        assert_eq!(after(course(Health::Starting), &fails, true), Health::Starting);
        assert_eq!(after(course(Health::Healthy), &fails, true), Health::Unhealthy);
    }

    #[test]
    fn only_running_backends_of_services_with_a_check_are_checked() {
        let mut cluster = TestCluster::with_nodes(1);
        cluster.network("mynet", "10.0.1.0/24", |_| {});
        cluster.service("web", &["mynet"], &[]);
        cluster.backend("a", "web", "h1", 11);
        let checked = |cluster: &TestCluster| wanted(&cluster.state, &id("a")).is_some();
        assert!(!checked(&cluster), "there is no check");
        cluster.service_mut("web").health = Some(Box::new(HealthCheck::new(Probe::Tcp(80))));
        assert!(checked(&cluster));
        for state in [EndpointState::Starting, EndpointState::Draining] {
            cluster.endpoint_mut("a").state = state;
            assert!(!checked(&cluster), "{state:?}");
        }
    }
}
