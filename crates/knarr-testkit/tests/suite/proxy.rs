//! The TCP fault proxy.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use knarr_testkit::data::content;
use knarr_testkit::proxy::{Action, Behaviour, Direction, Fault, FaultProxy};
use knarr_testkit::wait_until;

/// A server that sends back what it gets, until the end of the test process.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                std::io::copy(&mut stream, &mut back).ok();
                back.shutdown(Shutdown::Write).ok();
            });
        }
    });
    address
}

fn connect(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// Sends all of `data` while it reads, and gives what came back and how it ended.
fn exchange(stream: &TcpStream, data: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    let mut back = Vec::new();
    let mut reader = stream;
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = stream;
            writer.write_all(data).ok();
            writer.shutdown(Shutdown::Write).ok();
        });
        reader.read_to_end(&mut back)
    });
    (back, outcome.err().map(|error| error.kind()))
}

fn fault(direction: Direction, at_byte: u64, action: Action) -> Fault {
    Fault {
        connection: None,
        direction,
        at_byte,
        action,
    }
}

#[test]
fn bytes_pass_unchanged_and_are_counted() {
    let proxy = FaultProxy::to(echo_server()).start();
    let data = content(1, 3_000_000);
    let (back, error) = exchange(&connect(&proxy), &data);
    assert_eq!(error, None);
    assert!(back == data);
    let counters = proxy.counters();
    assert_eq!(
        (counters.to_server, counters.to_client),
        (3_000_000, 3_000_000)
    );
}

#[test]
fn latency_delays_every_byte_without_limiting_how_many_are_under_way() {
    let latency = Duration::from_millis(100);
    let proxy = FaultProxy::to(echo_server()).latency(latency).start();
    let start = Instant::now();
    let data = content(2, 8_000_000);
    let (back, _) = exchange(&connect(&proxy), &data);
    assert!(back == data);
    assert!(start.elapsed() >= latency * 2, "a byte came back too early");
}

#[test]
fn a_byte_is_corrupted_where_it_was_asked_for() {
    let corrupt = fault(Direction::ToServer, 1_234_567, Action::Corrupt);
    let proxy = FaultProxy::to(echo_server()).fault(corrupt).start();
    let mut data = content(3, 2_000_000);
    let (back, _) = exchange(&connect(&proxy), &data);
    data[1_234_567] = !data[1_234_567];
    assert!(back == data);
    assert_eq!(proxy.counters().faults, 1);
}

#[test]
fn a_reset_is_a_reset_and_happens_on_the_chosen_connection_only() {
    let reset = Fault {
        connection: Some(2),
        direction: Direction::ToServer,
        at_byte: 100_000,
        action: Action::Reset,
    };
    let proxy = FaultProxy::to(echo_server()).fault(reset).start();
    let data = content(4, 500_000);
    assert!(exchange(&connect(&proxy), &data).0 == data);
    let (back, error) = exchange(&connect(&proxy), &data);
    assert!(back.len() <= 100_000);
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
    assert!(exchange(&connect(&proxy), &data).0 == data);
}

#[test]
fn a_half_close_ends_one_direction_at_the_byte() {
    let half = fault(Direction::ToServer, 70_000, Action::HalfClose);
    let proxy = FaultProxy::to(echo_server()).fault(half).start();
    let data = content(5, 500_000);
    let (back, error) = exchange(&connect(&proxy), &data);
    assert_eq!(error, None);
    assert!(back == data[..70_000]);
}

#[test]
fn a_black_hole_says_nothing_until_it_is_lifted() {
    let proxy = FaultProxy::to(echo_server()).start();
    let mut stream = connect(&proxy);
    let mut buffer = [0; 4];
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut buffer).unwrap();
    proxy.set(Behaviour::BlackHole);
    stream.write_all(b"lost").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let silence = stream.read(&mut buffer).unwrap_err().kind();
    assert_eq!(silence, ErrorKind::WouldBlock);
    proxy.set(Behaviour::Forward);
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"lost");
}

#[test]
fn reset_all_reaches_idle_connections_and_refused_ones_fail() {
    let proxy = FaultProxy::to(echo_server()).start();
    let mut stream = connect(&proxy);
    wait_until(Duration::from_secs(20), "the connection", || {
        proxy.counters().open == 1
    });
    proxy.reset_all();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    wait_until(Duration::from_secs(20), "the end of it", || {
        proxy.counters().open == 0
    });
    proxy.set(Behaviour::Refuse);
    let mut refused = connect(&proxy);
    assert!(refused.read(&mut [0; 1]).is_err());
}

#[test]
fn a_limit_of_bytes_per_second_is_kept() {
    let proxy = FaultProxy::to(echo_server()).throttle(200_000).start();
    let start = Instant::now();
    let data = content(6, 50_000);
    assert!(exchange(&connect(&proxy), &data).0 == data);
    assert!(start.elapsed() >= Duration::from_millis(240));
}
