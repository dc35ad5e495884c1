//! Checks where the node listens for calls over HTTP.

use std::net::SocketAddr;

use crate::config::check::Checker;
use crate::config::resolved::Config;
use crate::config::shape::HttpShape;

impl Checker<'_> {
    pub(super) fn http(&mut self, shape: Option<&HttpShape>, config: &mut Config) {
        let Some(HttpShape { listen }) = shape else {
            return;
        };
        match listen.value.parse::<SocketAddr>() {
            Ok(address) => config.http_listen = Some(address),
            Err(_not_one) => self.helped(
                "node.http.listen".to_owned(),
                &listen.span,
                format!("`{}` is not an address with a port", listen.value),
                "write 127.0.0.1:8080",
            ),
        }
    }
}
