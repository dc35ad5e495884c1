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
