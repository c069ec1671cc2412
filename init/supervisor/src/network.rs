//! Applies the network of the site file.

use std::rc::Rc;

use dyad_api::operator::NetworkSection;
use tokio::sync::watch;

use crate::paths::Paths;
use crate::site::Site;

/// Applies and shows it.
pub(crate) async fn keep(_paths: Rc<Paths>, _site: Site, state: watch::Sender<NetworkSection>) {
    state.send_modify(|s| s.state = "waiting".into());
}
