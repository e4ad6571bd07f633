//! Which carrier gets a tunnel to its relay: all of a plan are tried, with head starts, and the
//! first whose request is answered wins. Which to try, and with what head start, is policy.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    stagger::first_success,
    target::{Attempt, CarrierDialer, Dialed, RelayTarget},
};
use crate::carrier::{BoxFuture, CarrierError, CarrierKind, ClientCarrier};

/// Time a carrier has from the start of its dial to the answer to its request. A handshake through
/// an HTTP proxy takes five round trips and the request one more: 1.6 s each on the worst line that
/// is of any use.
pub const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a carrier that is connected lets an earlier one wait for the answer to its request,
/// before it makes its own. Two requests at once would compete for the tunnel's one lease at the
/// relay, and the loser's might be the one that gets it.
const TURN_PATIENCE: Duration = Duration::from_secs(2);

/// The winner.
#[derive(Debug)]
pub struct Won<T> {
    /// Which kind of carrier it is.
    pub kind: CarrierKind,
    /// Where it goes.
    pub address: Option<SocketAddr>,
    /// The connection. Dropping the last handle closes it.
    pub carrier: Arc<dyn ClientCarrier>,
    /// What the request came to.
    pub opened: T,
    /// Tries that had failed by then.
    pub failed: Vec<Attempt>,
}

/// Races the carriers of `plan`: each is dialed, then `open` makes the request on it. Everything
/// but the winner is closed when this returns, and everything if the future is dropped.
///
/// # Errors
/// What was tried, in the order in which it failed.
pub async fn race<T, F>(
    dialer: &dyn CarrierDialer,
    target: &RelayTarget,
    plan: &[(CarrierKind, Duration)],
    open: F,
) -> Result<Won<T>, Vec<Attempt>>
where
    F: Fn(Arc<dyn ClientCarrier>) -> BoxFuture<'static, Result<T, CarrierError>>,
{
    let turn = Mutex::new(());
    let lanes = plan
        .iter()
        .map(|&(kind, offset)| (offset, lane(dialer, target, kind, &turn, &open)))
        .collect();
    let outcome = first_success(lanes).await;
    let failed = outcome.failed.into_iter().flat_map(|(_, tried)| tried);
    match outcome.won {
        Some((_, won)) => Ok(Won {
            failed: failed.collect(),
            ..won
        }),
        None => Err(failed.collect()),
    }
}

async fn lane<T, F>(
    dialer: &dyn CarrierDialer,
    target: &RelayTarget,
    kind: CarrierKind,
    turn: &Mutex<()>,
    open: &F,
) -> Result<Won<T>, Vec<Attempt>>
where
    F: Fn(Arc<dyn ClientCarrier>) -> BoxFuture<'static, Result<T, CarrierError>>,
{
    let begun = Instant::now();
    let failed = |address, error| vec![Attempt::new(kind, address, error, begun.elapsed())];
    let Dialed { carrier, address } = timeout(CARRIER_TIMEOUT, dialer.dial(kind, target))
        .await
        .unwrap_or_else(|_| {
            let error = CarrierError::new("handshake-timeout", "the relay did not answer in time");
            Err(failed(None, error))
        })?;
    let request = async {
        let _turn = timeout(TURN_PATIENCE, turn.lock()).await;
        open(carrier.clone()).await
    };
    let opened = timeout(CARRIER_TIMEOUT.saturating_sub(begun.elapsed()), request)
        .await
        .unwrap_or_else(|_| {
            let detail = "the relay did not answer the request in time";
            Err(CarrierError::new("request-timeout", detail))
        })
        .map_err(|error| failed(address, error))?;
    Ok(Won {
        kind,
        address,
        carrier,
        opened,
        failed: Vec::new(),
    })
}
