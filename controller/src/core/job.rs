//! Jobs that run by the clock: a name, a cron line, and what to do. One run at a time each.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
use tokio_util::task::TaskTracker;

/// Why a job could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("job {name} cannot be set up with the schedule {schedule:?}")]
pub struct JobError {
    /// Which.
    pub name: &'static str,
    /// Its cron line.
    pub schedule: &'static str,
    /// What the scheduler said.
    #[source]
    pub source: JobSchedulerError,
}

/// The jobs of the process.
pub struct Jobs {
    scheduler: JobScheduler,
    tasks: TaskTracker,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jobs")
    }
}

impl Jobs {
    /// Starts without jobs.
    ///
    /// # Errors
    ///
    /// [`JobError`] when the scheduler does not start.
    pub async fn start() -> Result<Self, JobError> {
        let failed = |source| JobError { name: "scheduler", schedule: "", source };
        let scheduler = JobScheduler::new().await.map_err(failed)?;
        scheduler.start().await.map_err(failed)?;
        Ok(Self { scheduler, tasks: TaskTracker::new() })
    }

    /// Runs `work` by `schedule`: six cron fields, seconds first, in UTC. While a run goes on, the
    /// next one is left out; a run starts at most half a second late.
    ///
    /// # Errors
    ///
    /// [`JobError`] when the schedule is not understood.
    pub async fn add<F, W>(
        &self,
        name: &'static str,
        schedule: &'static str,
        work: F,
    ) -> Result<(), JobError>
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let failed = |source| JobError { name, schedule, source };
        let (work, is_running) = (Arc::new(work), Arc::new(AtomicBool::new(false)));
        let tasks = self.tasks.clone();
        let job = Job::new_async(schedule, move |_, _| {
            let (work, is_running) = (work.clone(), is_running.clone());
            let tasks = tasks.clone();
            Box::pin(async move {
                if is_running.swap(true, Ordering::AcqRel) {
                    tracing::debug!("job {name} still runs; this time is left out");
                    return;
                }
                let run = Run(is_running);
                tasks.spawn(async move {
                    work().await;
                    drop(run);
                });
            })
        })
        .map_err(failed)?;
        self.scheduler.add(job).await.map_err(failed)?;
        Ok(())
    }

    /// Starts no more runs and waits for those that go on.
    pub async fn stop(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!(%error, "the job scheduler did not end cleanly");
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Marks a run as over, also when it panics.
struct Run(Arc<AtomicBool>);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn a_job_that_takes_longer_than_its_interval_is_never_run_twice_at_once() {
        let jobs = Jobs::start().await.unwrap();
        let (started, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let (count, held) = (started.clone(), gate.clone());
        let work = move || {
            let (count, held) = (count.clone(), held.clone());
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                let _permit = held.acquire().await;
            }
        };

        jobs.add("slow", "* * * * * *", work).await.unwrap();
        let reached = |wanted| {
            let started = started.clone();
            async move {
                while started.load(Ordering::SeqCst) < wanted {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let soon = Duration::from_secs(5);
        tokio::time::timeout(soon, reached(1)).await.unwrap();
        let twice = tokio::time::timeout(Duration::from_millis(2_500), reached(2)).await;
        assert!(twice.is_err(), "it ran twice at once");

        gate.add_permits(1);
        tokio::time::timeout(soon, reached(2)).await.unwrap();
        gate.add_permits(1_000);
        jobs.stop().await;
    }

    #[tokio::test]
    async fn a_schedule_that_is_not_understood_is_refused() {
        let jobs = Jobs::start().await.unwrap();

        let refused = jobs.add("odd", "every day", || async {}).await;

        assert!(refused.is_err());
    }
}
