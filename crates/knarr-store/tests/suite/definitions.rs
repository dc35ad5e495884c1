//! Jobs and endpoints that were added.

use knarr_store::definitions::DefinitionKind;

use crate::fixture::Fixture;

#[test]
fn definitions_survive_a_restart_and_go_with_what_is_known_of_their_schedule() {
    let fixture = Fixture::new();
    let put = |kind, name: &'static str, text: &'static str, by: &'static str| {
        let pending = fixture
            .store
            .transact(move |tx| tx.put_definition(kind, name, text, by));
        pending.wait().unwrap();
    };
    put(DefinitionKind::Job, "invoices", "{}", "anna");
    put(DefinitionKind::Endpoint, "partner", "{}", "anna");
    put(DefinitionKind::Job, "invoices", "{\"to\": \"/in\"}", "bert");
    fixture
        .store
        .transact(|tx| tx.pause_job("invoices", "anna"))
        .wait()
        .unwrap();
    let all = || fixture.store.read(|reader| reader.definitions()).unwrap();
    let names: Vec<_> = all().into_iter().map(|one| (one.kind, one.name)).collect();
    assert_eq!(
        names,
        [
            (DefinitionKind::Endpoint, "partner".to_owned()),
            (DefinitionKind::Job, "invoices".to_owned()),
        ]
    );
    let job = all().pop().unwrap();
    assert_eq!(job.definition, "{\"to\": \"/in\"}");
    assert_eq!(job.added_by, "anna", "who added it stays");
    let remove = || {
        let pending = fixture
            .store
            .transact(|tx| tx.remove_definition(DefinitionKind::Job, "invoices"));
        pending.wait().unwrap()
    };
    assert!(remove());
    assert!(!remove());
    let state = fixture.store.read(|reader| reader.job_state("invoices"));
    assert_eq!(
        state.unwrap(),
        None,
        "nor is the next one of this name paused"
    );
}

#[test]
fn the_pause_of_an_endpoint_survives_a_restart_and_goes_with_the_endpoint() {
    let fixture = Fixture::new();
    let pause = |name: &'static str, by: &'static str| {
        let paused = fixture
            .store
            .transact(move |tx| tx.pause_endpoint(name, by));
        paused.wait().unwrap()
    };
    assert!(pause("partner", "anna"));
    assert!(!pause("partner", "bert"), "the first one counts");
    assert!(pause("archive", "bert"));
    let fixture = Fixture {
        store: crate::fixture::open(&fixture.state()),
        ..fixture
    };
    let paused = || {
        fixture
            .store
            .read(|reader| reader.paused_endpoints())
            .unwrap()
    };
    let names: Vec<_> = paused().into_iter().map(|one| (one.name, one.by)).collect();
    let pair = |name: &str, by: &str| (name.to_owned(), by.to_owned());
    assert_eq!(names, [pair("archive", "bert"), pair("partner", "anna")]);
    let told = paused().pop().unwrap().to_string();
    assert!(
        told.starts_with("the endpoint `partner` was paused by anna at 2"),
        "{told}"
    );
    let resumed = fixture.store.transact(|tx| {
        tx.put_definition(DefinitionKind::Endpoint, "partner", "{}", "anna")?;
        tx.put_definition(DefinitionKind::User, "acme", "{}", "anna")?;
        tx.remove_definition(DefinitionKind::Endpoint, "partner")?;
        Ok((
            tx.resume_endpoint("archive")?,
            tx.resume_endpoint("partner")?,
        ))
    });
    assert_eq!(resumed.wait().unwrap(), (true, false));
    assert_eq!(paused(), []);
    let left = fixture.store.read(|reader| reader.definitions()).unwrap();
    assert_eq!(left.first().map(|one| one.kind), Some(DefinitionKind::User));
}
