//! The two tasks of a connection: one receives and always drains, one sends.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::client::answer::{Answer, Expect, Payload, RawHandle, Waiter};
use crate::client::core::{Core, Outgoing};
use crate::client::framer::{Frame, Framer};
use crate::client::{ConnectionError, PacketSink, PacketSource};
use crate::codec::{Reply, ServerPacket, StatusCode};

/// Receives until the connection ends, and ends it when the server breaks the protocol. Of several
/// reasons the first one given to the core stays.
pub(crate) async fn receive(
    core: Arc<Core>,
    mut source: impl PacketSource,
    mut framer: Framer,
    idle_limit: Duration,
) {
    let reason = drain(&core, &mut source, &mut framer, idle_limit).await;
    core.fail(reason);
}

/// Sends until the connection ends.
pub(crate) async fn send(core: Arc<Core>, mut sink: impl PacketSink, receiver: AbortHandle) {
    while let Some(outgoing) = core.to_send().await {
        for bytes in outgoing.into_iter().map(Outgoing::into_bytes) {
            if bytes.is_empty() {
                continue;
            }
            if let Err(source) = sink.send(bytes).await {
                core.fail(ConnectionError::Stream {
                    doing: "sending",
                    source,
                });
                receiver.abort();
                return;
            }
        }
    }
}

async fn drain(
    core: &Arc<Core>,
    source: &mut impl PacketSource,
    framer: &mut Framer,
    idle_limit: Duration,
) -> ConnectionError {
    // A time-out per chunk would be exact and cost a timer for each; a tick that looks back is late
    // by at most an eighth.
    let mut tick = interval((idle_limit / 8).max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_received = Instant::now();
    loop {
        loop {
            match framer.next() {
                Ok(Some(frame)) => {
                    if let Err(violation) = dispatch(core, frame) {
                        return violation;
                    }
                }
                Ok(None) => break,
                Err(violation) => return violation,
            }
        }
        let mut next = pin!(source.next());
        let received = loop {
            tokio::select! {
                biased;
                received = &mut next => break received,
                _ = tick.tick() => {
                    if let Some(waiting) = core.overdue(last_received, idle_limit) {
                        let seconds = idle_limit.as_secs_f64();
                        return ConnectionError::Silent { seconds, waiting };
                    }
                }
            }
        };
        match received {
            Ok(Some(chunk)) => {
                // An empty chunk is no sign of life.
                if !chunk.is_empty() {
                    last_received = Instant::now();
                }
                framer.push(chunk);
            }
            Ok(None) => {
                return ConnectionError::EndOfStream {
                    partial_bytes: framer.partial_bytes(),
                };
            }
            Err(source) => {
                return ConnectionError::Stream {
                    doing: "receiving",
                    source,
                };
            }
        }
    }
}

/// Brings one reply to who waits for it.
fn dispatch(core: &Arc<Core>, frame: Frame) -> Result<(), ConnectionError> {
    let (id, reply) = match frame {
        Frame::Data { id, pieces, length } => {
            let waiter = core
                .take_waiter(id)
                .ok_or(ConnectionError::UnknownId { id })?;
            let answer = data(waiter.expect, Payload::Pieces(pieces), length);
            return hand_over(core, waiter, answer);
        }
        Frame::Whole(body) => match ServerPacket::decode(body) {
            Ok(ServerPacket::Reply { id, reply }) => (id, reply),
            Ok(ServerPacket::Version { .. }) => {
                let expected = "anything but the version";
                return Err(ConnectionError::WrongReply {
                    received: "a version",
                    expected,
                });
            }
            Err(source) => return Err(ConnectionError::Codec { source }),
        },
    };
    let waiter = core
        .take_waiter(id)
        .ok_or(ConnectionError::UnknownId { id })?;
    let answer = match_reply(core, waiter.expect, reply);
    hand_over(core, waiter, answer)
}

fn hand_over(
    core: &Core,
    waiter: Waiter,
    answer: Result<Answer, ConnectionError>,
) -> Result<(), ConnectionError> {
    match answer {
        Ok(answer) => {
            waiter.answer(answer);
            Ok(())
        }
        Err(violation) => {
            // Who waits for this reply is out of its slot already, and gets the reason from the core
            // when it is dropped: so the reason has to be there first.
            core.fail(violation);
            drop(waiter);
            Err(ConnectionError::Closed)
        }
    }
}

fn match_reply(core: &Arc<Core>, expect: Expect, reply: Reply) -> Result<Answer, ConnectionError> {
    let wrong = |received| {
        Err(ConnectionError::WrongReply {
            received,
            expected: expect.name(),
        })
    };
    match (expect, reply) {
        (Expect::Status, Reply::Status(status)) => Ok(Answer::Status(status)),
        // "Done" answers nothing where something was asked for.
        (_, Reply::Status(status)) if status.code != StatusCode::Ok => Ok(Answer::Status(status)),
        (Expect::Handle, Reply::Handle(handle)) => {
            // A copy: a slice would keep the whole chunk as long as the file is open.
            let handle = Bytes::copy_from_slice(&handle);
            Ok(Answer::Handle(RawHandle::new(handle, Arc::clone(core))))
        }
        (Expect::Data { .. }, Reply::Data(bytes)) => {
            let length = bytes.len();
            data(expect, Payload::One(bytes), length)
        }
        (Expect::Names, Reply::Names(names)) => Ok(Answer::Names(names)),
        (Expect::Attributes, Reply::Attributes(attributes)) => Ok(Answer::Attributes(attributes)),
        (Expect::Extended, Reply::Extended(payload)) => Ok(Answer::Extended(payload)),
        (_, Reply::Status(_)) => wrong("the status \"done\""),
        (_, Reply::Handle(_)) => wrong("a handle"),
        (_, Reply::Data(_)) => wrong("data"),
        (_, Reply::Names(_)) => wrong("names"),
        (_, Reply::Attributes(_)) => wrong("attributes"),
        (_, Reply::Extended(_)) => wrong("an extended reply"),
    }
}

fn data(expect: Expect, payload: Payload, length: usize) -> Result<Answer, ConnectionError> {
    let Expect::Data { asked_bytes } = expect else {
        return Err(ConnectionError::WrongReply {
            received: "data",
            expected: expect.name(),
        });
    };
    // Nothing at all would be asked for again, for ever.
    if length == 0 || u32::try_from(length).is_ok_and(|length| length > asked_bytes) {
        return Err(ConnectionError::WrongLength {
            asked_bytes,
            received_bytes: length,
        });
    }
    Ok(Answer::Data(payload))
}
