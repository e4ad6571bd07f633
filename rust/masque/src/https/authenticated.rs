//! A relay that also takes tokens for proof of a PeerId, in front of any [`Service`].

use std::{sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};

use super::token::{self, SCHEME, TokenError, Verifier};
use crate::carrier::{Accepted, BoxFuture, Client, Refused, Service, TunnelIn, TunnelOut};

/// Fills in who the client is from the `authorization` field of its request.
///
/// What TLS has proved stands, and the field is then not looked at. A request without it, or with
/// another scheme in it, goes on as that of an ordinary client; one with a bad token is refused, so
/// that a node learns of it.
pub struct Authenticated {
    service: Arc<dyn Service>,
    verifier: Arc<Verifier>,
}

impl Authenticated {
    /// Puts `verifier` in front of `service`. One verifier may serve several listeners, and should
    /// where they are of one relay: a token is good once.
    pub fn new(service: Arc<dyn Service>, verifier: Arc<Verifier>) -> Self {
        Self { service, verifier }
    }
}

impl Service for Authenticated {
    fn open<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Result<(Accepted, Arc<dyn TunnelIn>), Refused>> {
        let fields = request.headers().get_all(header::AUTHORIZATION);
        let token = fields.iter().find(|value| token::is_token(value));
        let (None, Some(token)) = (client.peer_id, token) else {
            return self.service.open(client, request, out);
        };
        let verified = self.verifier.verify(token, SystemTime::now());
        Box::pin(async move {
            let client = Client {
                peer_id: Some(verified.map_err(unauthorized)?),
                ..client.clone()
            };
            self.service.open(&client, request, out).await
        })
    }
}

fn unauthorized(error: TokenError) -> Refused {
    let mut headers = HeaderMap::new();
    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(SCHEME));
    // RFC 9209, section 2.3.
    let status = format!("anyreach; error=http_request_denied; details=\"{error}\"");
    let status = HeaderValue::try_from(status).expect("our messages are ASCII without quotes");
    headers.insert("proxy-status", status);
    Refused {
        status: StatusCode::UNAUTHORIZED,
        headers,
    }
}
