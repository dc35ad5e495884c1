//! The services of alerts, of the custody record, and of users.

use knarr_store::Store;
use knarr_store::chain::{ChainHead, Going};
use knarr_store::definitions::DefinitionKind;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::convert::file_record;
use crate::desk;
use crate::query;
use crate::services::{
    Alerts, Audit, Reply, Streamed, Users, WAITING_EVENTS, blocking, by, streamed,
};
use crate::v1;

#[tonic::async_trait]
impl v1::alerts_server::Alerts for Alerts {
    async fn list(&self, _request: Request<v1::ListRulesRequest>) -> Reply<v1::ListRulesReply> {
        let mut rules = self.0.counter.ask(desk::Request::Rules).await?;
        blocking(&self.0.store, move |store| {
            query::fill_rules(store, &mut rules)?;
            Ok(v1::ListRulesReply { rules })
        })
        .await
    }

    async fn test(&self, request: Request<v1::TestAlertRequest>) -> Reply<v1::TestAlertReply> {
        let name = request.into_inner().name;
        let ask = |reply| desk::Request::TestAlert(name, reply);
        let targets = self.0.counter.ask(ask).await?;
        Ok(Response::new(v1::TestAlertReply { targets }))
    }
}

#[tonic::async_trait]
impl v1::audit_server::Audit for Audit {
    type VerifyStream = Streamed<v1::VerifyEvent>;

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Reply<Self::VerifyStream> {
        let noted = query::noted(&request.into_inner())?;
        let (to, receiver) = mpsc::channel(WAITING_EVENTS);
        let store = self.0.store.clone();
        tokio::task::spawn_blocking(move || verify(&store, noted, &to));
        Ok(Response::new(streamed(receiver)))
    }

    type ExportStream = Streamed<v1::FileRecord>;

    async fn export(&self, request: Request<v1::ExportRequest>) -> Reply<Self::ExportStream> {
        let from = request.into_inner().from;
        let (to, receiver) = mpsc::channel(WAITING_EVENTS);
        let store = self.0.store.clone();
        tokio::task::spawn_blocking(move || {
            for record in store.custody_cursor(from) {
                let record = record.map(file_record);
                let record = record.map_err(|error| Status::internal(knarr_engine::chain(&error)));
                if to.blocking_send(record).is_err() {
                    // The reader has gone.
                    return;
                }
            }
        });
        Ok(Response::new(streamed(receiver)))
    }
}

type Told = mpsc::Sender<Result<v1::VerifyEvent, Status>>;

/// Checks the chain, as long as somebody waits for it. Blocks.
fn verify(store: &Store, noted: Option<ChainHead>, to: &Told) {
    use v1::verify_event::What;
    let tell = |what| {
        let event = v1::VerifyEvent { what: Some(what) };
        match to.blocking_send(Ok(event)) {
            Ok(()) => Going::On,
            Err(_gone) => Going::Away,
        }
    };
    let checked = store.check_chain(noted.as_ref(), &mut |walked| tell(What::Checked(walked)));
    match checked {
        Ok(Some(checked)) => {
            tell(What::Verdict(query::verdict(&checked)));
        }
        Ok(None) => {}
        Err(error) => {
            let status = Status::internal(knarr_engine::chain(&error));
            // The reader has gone.
            let _gone: Result<(), _> = to.blocking_send(Err(status));
        }
    }
}

#[tonic::async_trait]
impl v1::users_server::Users for Users {
    async fn list(&self, _request: Request<v1::ListUsersRequest>) -> Reply<v1::ListUsersReply> {
        let users = self.0.counter.ask(desk::Request::Users).await?;
        Ok(Response::new(v1::ListUsersReply { users }))
    }

    async fn remove(&self, request: Request<v1::UserName>) -> Reply<v1::Changed> {
        let (by, name) = (by(&request), request.into_inner().user);
        let ask = |reply| desk::Request::Remove(DefinitionKind::User, name, by, reply);
        Ok(Response::new(self.0.counter.ask(ask).await?))
    }
}
