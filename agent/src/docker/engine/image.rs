//! Images of an engine: looked at and fetched.

use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::stream::{self, StreamExt};
use tianqi_common::wire::stream::RegistryCredentials;

use super::{Engine, PULL_SILENCE, QUICK};
use crate::docker::pull::{self, Layers};
use crate::docker::{DockerError, ImageFacts, Pieces, PullProgress};

impl Engine {
    pub(super) async fn read_image(
        &self,
        reference: &str,
    ) -> Result<Option<ImageFacts>, DockerError> {
        pull::check_reference(reference)?;
        let call = self.client.inspect_image(reference);
        let answer = match self.within("inspect image", QUICK, call).await {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let config = answer.config.unwrap_or_default();
        Ok(Some(ImageFacts {
            id: answer.id.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            architecture: answer.architecture.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default(),
        }))
    }

    pub(super) fn pull_image(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
    ) -> Pieces<PullProgress> {
        if let Err(error) = pull::check_reference(reference) {
            return stream::iter([Err(error)]).boxed();
        }
        let reference = pull::with_tag(reference);
        let credentials = credentials.map(|given| DockerCredentials {
            username: Some(given.username),
            password: Some(given.password),
            serveraddress: Some(pull::registry(&reference)),
            ..Default::default()
        });
        let options = CreateImageOptionsBuilder::default().from_image(&reference).build();
        let answers = self.client.create_image(Some(options), None, credentials);
        let mut layers = Layers::default();
        let progress = answers.map(move |answer| {
            answer.map(|info| {
                let detail = info.progress_detail.unwrap_or_default();
                layers.update(
                    info.id.as_deref().unwrap_or_default(),
                    info.status.as_deref().unwrap_or_default(),
                    detail.current.and_then(|n| u64::try_from(n).ok()),
                    detail.total.and_then(|n| u64::try_from(n).ok()),
                )
            })
        });
        until_silent(self.pieces("pull", progress), PULL_SILENCE)
    }
}

/// Ends a stream with an error when nothing comes for `limit`.
fn until_silent<T: Send + 'static>(pieces: Pieces<T>, limit: Duration) -> Pieces<T> {
    stream::unfold(Some(pieces), move |pieces| async move {
        let mut pieces = pieces?;
        match tokio::time::timeout(limit, pieces.next()).await {
            Ok(piece) => piece.map(|piece| (piece, Some(pieces))),
            Err(_) => Some((Err(DockerError::TimedOut { what: "pull", after: limit }), None)),
        }
    })
    .boxed()
}
