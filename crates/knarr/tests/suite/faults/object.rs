//! S3 under faults of the store and of the line.

use knarr_testkit::data::TreeBuilder;
use knarr_testkit::http_fault::{Answer, HttpAction, HttpFaultProxy, Rule};
use knarr_testkit::s3::{S3Server as _, S3sFs};

use super::support::{bucket_directory, large_file, report, s3_endpoint};
use crate::program::Place;

/// The length of the large file, in bytes: four parts of 5 MiB, the last one shorter.
const LARGE: u64 = 18 << 20;

struct Site {
    server: S3sFs,
    proxy: HttpFaultProxy,
    place: Place,
}

impl Site {
    fn new() -> Self {
        let server = S3sFs::start();
        let proxy = HttpFaultProxy::start(server.address());
        let place = Place::new();
        TreeBuilder::new(21).files(30).build(&place.path("in"));
        large_file(&place.path("in/large"), 22, LARGE);
        let endpoint = s3_endpoint(&server, &proxy.endpoint_url());
        place.write("knarr.yaml", format!("endpoints:\n{endpoint}"));
        Self {
            server,
            proxy,
            place,
        }
    }

    /// Copies under `rules`, which have to be met, and the copy has to get through in spite of them.
    #[track_caller]
    fn gets_through(&self, rules: impl IntoIterator<Item = Rule>) {
        for rule in rules {
            self.proxy.rule(rule);
        }
        let done = self
            .place
            .run_with_keys(&["copy", "in", "bucket:", "--json"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(report(&done)["failed"], 0, "{done:?}");
        let faults = self
            .proxy
            .requests()
            .iter()
            .filter(|request| request.faulty)
            .count();
        assert!(faults > 0, "no request met a fault");
        self.proxy.clear_rules();
        let (source, destination) = (self.place.path("in"), bucket_directory(&self.server));
        self.place
            .check_end(&["copy", "in", "bucket:"], &source, &destination);
    }
}

#[test]
fn k7_r40_internal_errors_and_pleas_to_slow_down_are_waited_out() {
    let site = Site::new();
    site.gets_through([
        Rule::on("PUT", HttpAction::Answer(Answer::internal_error()))
            .nth(3)
            .times(2),
        Rule::on("PUT", HttpAction::Answer(Answer::slow_down()))
            .nth(10)
            .times(3),
        Rule::on("PUT", HttpAction::Answer(Answer::too_many_requests(1)))
            .nth(20)
            .times(2),
        Rule::on("GET", HttpAction::Answer(Answer::slow_down())),
        Rule::on("PUT", HttpAction::Answer(Answer::slow_down())).containing("partNumber=2"),
    ]);
}

#[test]
fn k7_r40_a_completion_that_answers_200_with_an_error_is_not_taken_for_done() {
    let site = Site::new();
    site.gets_through([
        Rule::on("POST", HttpAction::Answer(Answer::ok_with_error())).containing("uploadId="),
    ]);
}

#[test]
fn k9_r40_an_answer_that_is_lost_after_the_store_did_it_makes_no_second_upload() {
    let site = Site::new();
    site.gets_through([
        Rule::on("POST", HttpAction::DropResponse).containing("uploadId="),
        Rule::on("PUT", HttpAction::DropResponse).nth(5),
    ]);
    let begun = site.proxy.requests_like("POST", "uploads").len();
    assert_eq!(begun, 1, "{:?}", site.proxy.requests_like("POST", ""));
}

#[test]
fn k9_r40_a_part_that_is_cut_in_its_middle_is_the_only_one_sent_again() {
    let site = Site::new();
    let cut = HttpAction::CutRequest {
        after_body_bytes: 2 << 20,
    };
    site.gets_through([Rule::on("PUT", cut).containing("partNumber=3")]);
    let parts = site.proxy.requests_like("PUT", "partNumber=");
    assert_eq!(parts.len(), 5, "four parts, one of them twice: {parts:?}");
}

#[test]
fn r40_a_store_that_only_refuses_is_told_and_later_the_copy_goes_on() {
    let site = Site::new();
    site.proxy
        .rule(Rule::any(HttpAction::Answer(Answer::s3_error(403, "AccessDenied"))).always());
    let done = site.place.run_with_keys(&["copy", "in", "bucket:"]);
    assert_ne!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("AccessDenied") || done.stderr.contains("denied"),
        "{done:?}"
    );
    site.proxy.clear_rules();
    site.gets_through([Rule::on("PUT", HttpAction::Answer(Answer::slow_down()))]);
}
