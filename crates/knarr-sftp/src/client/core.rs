//! What the tasks of a connection share: the slots of requests in flight, and what is to be sent.
//!
//! Constraints: one lock, held for a few instructions and never across an await. An id is the number
//! of a slot and how often it was used, so a late or repeated reply does not find its slot.
//!
//! Order in `submit`: the slot is taken before the packet can be sent, under the same lock, so that
//! no reply can arrive before its slot exists. Permits are taken before and given back after, so the
//! number of slots never exceeds the limit.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, TryAcquireError, oneshot};
use tokio::time::Instant;

use crate::client::answer::{Expect, Pending, ReplySender, Waiter};
use crate::client::{ConnectionError, Error};
use crate::codec::{CodecError, LENGTH_BYTES, Request, encode_write_header};

/// Requests that carry and ask for less than this are limited by their number alone.
const LIGHT_BYTES: u32 = 4096;

/// A buffer of small packets takes more until it is this long.
const COALESCED_BYTES: usize = 32 * 1024;

/// Room for small packets in a fresh buffer.
const FRESH_BYTES: usize = 4096;

/// Leave to send a request; given back if it is dropped unused.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    slot: SemaphorePermit<'a>,
    bytes: Option<SemaphorePermit<'a>>,
    weight: u32,
}

#[derive(Debug)]
struct Occupant {
    expect: Expect,
    /// Permits for bytes to give back.
    weight: u32,
    /// `None` if nobody waits.
    reply: Option<ReplySender>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u16,
    occupant: Option<Occupant>,
}

/// What is to be sent, in order.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Small packets, and what comes before the data of large ones.
    Packets(BytesMut),
    /// Data that goes out as it came in, without a copy.
    Data(Bytes),
}

impl Outgoing {
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Packets(buffer) => buffer.freeze(),
            Self::Data(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    free: Vec<u16>,
    outbox: VecDeque<Outgoing>,
    /// Handles that nobody holds any more and for which no request was free. The server limits how
    /// many handles there are, so this is limited too.
    closes: Vec<Bytes>,
    failure: Option<Arc<ConnectionError>>,
    /// Since when at least one request waits.
    busy_since: Instant,
}

#[derive(Debug)]
pub(crate) struct Core {
    state: Mutex<State>,
    slot_permits: Semaphore,
    byte_permits: Semaphore,
    byte_limit: u32,
    packet_limit: AtomicUsize,
    outstanding: AtomicUsize,
    /// Wakes the task that sends.
    to_send: Notify,
}

impl Core {
    pub(crate) fn new(request_limit: u16, byte_limit: u32, packet_limit: usize) -> Self {
        let state = State {
            slots: Vec::new(),
            free: Vec::new(),
            outbox: VecDeque::new(),
            closes: Vec::new(),
            failure: None,
            busy_since: Instant::now(),
        };
        Self {
            state: Mutex::new(state),
            slot_permits: Semaphore::new(usize::from(request_limit.max(1))),
            byte_permits: Semaphore::new(usize::try_from(byte_limit).unwrap_or(usize::MAX)),
            byte_limit,
            packet_limit: AtomicUsize::new(packet_limit),
            outstanding: AtomicUsize::new(0),
            to_send: Notify::new(),
        }
    }

    /// Longest body that is sent, in bytes.
    pub(crate) fn packet_limit(&self) -> usize {
        self.packet_limit.load(Ordering::Relaxed)
    }

    /// Sets the longest body that is sent, in bytes, once the server has said what it takes.
    pub(crate) fn set_packet_limit(&self, bytes: usize) {
        self.packet_limit.store(bytes, Ordering::Relaxed);
    }

    /// Requests without a reply.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Why the connection failed; that it was closed, if it did not fail.
    pub(crate) fn failure(&self) -> Error {
        Error::lost(
            &self
                .failure_reason()
                .unwrap_or_else(|| Arc::new(ConnectionError::Closed)),
        )
    }

    pub(crate) fn failure_reason(&self) -> Option<Arc<ConnectionError>> {
        self.lock().failure.clone()
    }

    /// Waits until a request that moves `weight` bytes, either way, may be sent.
    pub(crate) async fn admit(&self, weight: u32) -> Result<Admission<'_>, Error> {
        let slot = self
            .slot_permits
            .acquire()
            .await
            .map_err(|_| self.failure())?;
        let weight = self.counted(weight);
        let bytes = match weight {
            0 => None,
            weight => {
                let permits = self.byte_permits.acquire_many(weight).await;
                Some(permits.map_err(|_| self.failure())?)
            }
        };
        Ok(Admission {
            slot,
            bytes,
            weight,
        })
    }

    /// Like `admit`, but `None` where it would have to wait.
    pub(crate) fn try_admit(&self, weight: u32) -> Result<Option<Admission<'_>>, Error> {
        let slot = match self.slot_permits.try_acquire() {
            Ok(slot) => slot,
            Err(TryAcquireError::NoPermits) => return Ok(None),
            Err(TryAcquireError::Closed) => return Err(self.failure()),
        };
        let weight = self.counted(weight);
        let bytes = match weight {
            0 => None,
            weight => match self.byte_permits.try_acquire_many(weight) {
                Ok(permits) => Some(permits),
                Err(TryAcquireError::NoPermits) => return Ok(None),
                Err(TryAcquireError::Closed) => return Err(self.failure()),
            },
        };
        Ok(Some(Admission {
            slot,
            bytes,
            weight,
        }))
    }

    fn counted(&self, weight: u32) -> u32 {
        if weight < LIGHT_BYTES {
            0
        } else {
            weight.min(self.byte_limit)
        }
    }

    /// Queues a small request.
    pub(crate) fn submit(
        self: &Arc<Self>,
        admission: Admission<'_>,
        request: &Request<&[u8]>,
        expect: Expect,
    ) -> Result<Result<Pending, CodecError>, Error> {
        let mut state = self.lock();
        if let Some(reason) = &state.failure {
            return Err(Error::lost(reason));
        }
        let id = state.reserve();
        let was_idle = state.outbox.is_empty();
        if let Err(error) = request.encode(id, self.packet_limit(), state.tail()) {
            state.release(id);
            state.drop_empty_tail();
            return Ok(Err(error));
        }
        Ok(Ok(self.commit(state, admission, id, expect, was_idle)))
    }

    /// Queues a request that is encoded already, with any id.
    pub(crate) fn submit_packet(
        self: &Arc<Self>,
        admission: Admission<'_>,
        mut packet: BytesMut,
        expect: Expect,
    ) -> Result<Pending, Error> {
        let mut state = self.lock();
        if let Some(reason) = &state.failure {
            return Err(Error::lost(reason));
        }
        let id = state.reserve();
        let was_idle = state.outbox.is_empty();
        packet[LENGTH_BYTES + 1..LENGTH_BYTES + 5].copy_from_slice(&id.to_be_bytes());
        state.outbox.push_back(Outgoing::Packets(packet));
        Ok(self.commit(state, admission, id, expect, was_idle))
    }

    /// Queues a WRITE of `pieces`, which are not copied unless they are small.
    pub(crate) fn submit_write(
        self: &Arc<Self>,
        admission: Admission<'_>,
        handle: &[u8],
        offset: u64,
        pieces: Vec<Bytes>,
    ) -> Result<Result<Pending, CodecError>, Error> {
        let data_bytes: usize = pieces.iter().map(Bytes::len).sum();
        let mut state = self.lock();
        if let Some(reason) = &state.failure {
            return Err(Error::lost(reason));
        }
        let id = state.reserve();
        let was_idle = state.outbox.is_empty();
        let (limit, tail) = (self.packet_limit(), state.tail());
        if let Err(error) = encode_write_header(id, handle, offset, data_bytes, limit, tail) {
            state.release(id);
            state.drop_empty_tail();
            return Ok(Err(error));
        }
        if data_bytes < COALESCED_BYTES {
            let tail = state.tail();
            // At once for those that will follow it: growing step by step would copy each several times.
            tail.reserve(data_bytes.max(COALESCED_BYTES.saturating_sub(tail.len())));
            pieces
                .iter()
                .for_each(|piece| tail.extend_from_slice(piece));
        } else {
            state.outbox.extend(pieces.into_iter().map(Outgoing::Data));
        }
        Ok(Ok(self.commit(
            state,
            admission,
            id,
            Expect::Status,
            was_idle,
        )))
    }

    fn commit(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        admission: Admission<'_>,
        id: u32,
        expect: Expect,
        was_idle: bool,
    ) -> Pending {
        let (sender, receiver) = oneshot::channel();
        let occupant = Occupant {
            expect,
            weight: admission.weight,
            reply: Some(sender),
        };
        self.occupy(&mut state, id, occupant);
        drop(state);
        // From here on the permits belong to the slot.
        admission.slot.forget();
        if let Some(bytes) = admission.bytes {
            bytes.forget();
        }
        if was_idle {
            self.to_send.notify_one();
        }
        Pending {
            receiver,
            core: Arc::clone(self),
        }
    }

    fn occupy(&self, state: &mut State, id: u32, occupant: Occupant) {
        if self.outstanding.fetch_add(1, Ordering::Relaxed) == 0 {
            state.busy_since = Instant::now();
        }
        state.slots[slot_of(id)].occupant = Some(occupant);
    }

    /// Takes who waits for `id` out of its slot, which another request can use from now on.
    pub(crate) fn take_waiter(&self, id: u32) -> Option<Waiter> {
        let mut state = self.lock();
        let slot = state.slots.get_mut(slot_of(id))?;
        if slot.generation != generation_of(id) {
            return None;
        }
        let Occupant {
            expect,
            weight,
            reply,
        } = slot.occupant.take()?;
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        state.release(id);
        if let Some(handle) = state.closes.pop() {
            // The slot and its permit go to the CLOSE.
            self.send_close(state, &handle);
        } else {
            drop(state);
            self.slot_permits.add_permits(1);
        }
        if weight > 0 {
            self.byte_permits
                .add_permits(usize::try_from(weight).unwrap_or(usize::MAX));
        }
        Some(Waiter { expect, reply })
    }

    /// Gives a handle back without waiting and without telling anyone how that went.
    pub(crate) fn close_later(&self, handle: Bytes) {
        let permit = self.slot_permits.try_acquire();
        let mut state = self.lock();
        if state.failure.is_some() {
            return;
        }
        match permit {
            Ok(permit) => {
                permit.forget();
                self.send_close(state, &handle);
            }
            Err(_) => state.closes.push(handle),
        }
    }

    fn send_close(&self, mut state: MutexGuard<'_, State>, handle: &[u8]) {
        let id = state.reserve();
        let was_idle = state.outbox.is_empty();
        let request = Request::Close { handle };
        // A handle has at most 256 bytes, which every limit allows.
        if request.encode(id, usize::MAX, state.tail()).is_ok() {
            self.occupy(
                &mut state,
                id,
                Occupant {
                    expect: Expect::Status,
                    weight: 0,
                    reply: None,
                },
            );
        }
        drop(state);
        if was_idle {
            self.to_send.notify_one();
        }
    }

    /// Everything that is to be sent; waits until there is something. `None` after a failure.
    pub(crate) async fn to_send(&self) -> Option<VecDeque<Outgoing>> {
        loop {
            {
                let mut state = self.lock();
                if state.failure.is_some() {
                    return None;
                }
                if !state.outbox.is_empty() {
                    return Some(std::mem::take(&mut state.outbox));
                }
            }
            self.to_send.notified().await;
        }
    }

    /// Ends the connection for everybody who waits or will ask. The first reason stays.
    pub(crate) fn fail(&self, reason: ConnectionError) {
        let reason = Arc::new(reason);
        let mut waiters = Vec::new();
        {
            let mut state = self.lock();
            if state.failure.is_some() {
                return;
            }
            state.failure = Some(Arc::clone(&reason));
            state.outbox.clear();
            state.closes.clear();
            for slot in &mut state.slots {
                waiters.extend(slot.occupant.take().and_then(|occupant| occupant.reply));
            }
        }
        tracing::debug!(%reason, waiting = waiters.len(), "SFTP connection ended");
        self.outstanding.store(0, Ordering::Relaxed);
        self.slot_permits.close();
        self.byte_permits.close();
        self.to_send.notify_one();
        for waiter in waiters {
            drop(waiter.send(Err(Arc::clone(&reason))));
        }
    }

    /// Requests that wait although nothing arrived for `limit`, if there are any.
    pub(crate) fn overdue(&self, last_received: Instant, limit: Duration) -> Option<usize> {
        let waiting = self.outstanding();
        let since = last_received.max(self.lock().busy_since);
        (waiting > 0 && since.elapsed() >= limit).then_some(waiting)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held, and the state is sound after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// An id whose slot is free; the slot is off the list until `release`.
    fn reserve(&mut self) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // Permits limit the slots to u16::MAX.
            u16::try_from(self.slots.len() - 1).unwrap_or(u16::MAX)
        });
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        u32::from(slot.generation) << 16 | u32::from(index)
    }

    fn release(&mut self, id: u32) {
        self.free.push((id & 0xffff) as u16);
    }

    /// Takes the buffer of a packet that could not be encoded away again: an outbox that is not empty
    /// means that the sending task has been woken.
    fn drop_empty_tail(&mut self) {
        if let Some(Outgoing::Packets(buffer)) = self.outbox.back()
            && buffer.is_empty()
        {
            self.outbox.pop_back();
        }
    }

    /// The buffer that the next small packet goes into.
    fn tail(&mut self) -> &mut BytesMut {
        let has_room = matches!(
            self.outbox.back(),
            Some(Outgoing::Packets(buffer)) if buffer.len() < COALESCED_BYTES
        );
        if !has_room {
            let fresh = BytesMut::with_capacity(FRESH_BYTES);
            self.outbox.push_back(Outgoing::Packets(fresh));
        }
        let last = self.outbox.back_mut().and_then(|last| match last {
            Outgoing::Packets(buffer) => Some(buffer),
            Outgoing::Data(_) => None,
        });
        last.expect("a buffer was there or has just been added")
    }
}

const fn slot_of(id: u32) -> usize {
    (id & 0xffff) as usize
}

const fn generation_of(id: u32) -> u16 {
    (id >> 16) as u16
}
