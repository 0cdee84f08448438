//! What stays at the router when another protocol takes its place: mappings without an end, which nobody would ever take back.

use super::*;

/// They are looked at and deleted, as a mapping is that is given back: one exchange at a time, and not for long.
#[derive(Debug)]
pub struct Leftover {
    client: IgdClient,
    /// When that is given up; `None` before it has begun.
    until: Option<Instant>,
}

impl Leftover {
    /// How long it may take.
    const WITHIN: Duration = Duration::from_secs(120);

    /// `None`: there is nothing that would not end by itself.
    pub(super) fn of(mut client: IgdClient) -> Option<Self> {
        let only_permanent = client.only_permanent;
        client
            .flows
            .retain(|_, flow| flow.port != 0 && (flow.permanent || flow.unanswered && only_permanent));
        client.leaving = true;
        // Nothing of what is out is waited for.
        (client.out, client.line, client.timers) = (None, Line::default(), Timers::default());
        client.outputs.clear();
        (!client.flows.is_empty()).then_some(Self { client, until: None })
    }

    /// The address that the mappings lead to.
    pub fn source(&self) -> IpAddr {
        self.client.source()
    }

    /// Where the router is asked.
    pub fn asked_at(&self) -> SocketAddr {
        self.client.asked_at()
    }

    /// Begins, unless it has begun.
    pub fn begin(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        if self.until.is_some() {
            return;
        }
        self.until = Some(now + Self::WITHIN);
        (self.client.open, self.client.resume) = (true, (now, now));
        for id in self.client.flows.keys().copied().collect::<Vec<_>>() {
            self.client.flows.get_mut(&id).expect("it was listed").begin(Phase::Asking);
            self.client.begin_delete(now, id);
            self.client.line.join(Rank::Delete, What::Flow(id));
        }
        self.client.go_on(now, entropy);
    }

    /// What became of an exchange, of whomever.
    pub fn handle_http(
        &mut self,
        now: Instant,
        id: HttpId,
        outcome: &HttpOutcome,
        entropy: &mut dyn Entropy,
    ) {
        self.client.handle_input(now, Input::Http(id, outcome), entropy);
    }

    /// An alarm may be due.
    pub fn handle_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        self.client.handle_input(now, Input::Timeout, entropy);
    }

    /// An exchange to carry out, or the end of a mapping ([`Output::Deleted`]) that whoever has it now may have to ask for again: it may
    /// have been the same one. Call until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            match self.client.poll_output()? {
                output @ (Output::Http(_) | Output::Deleted(_)) => return Some(output),
                Output::DeleteRefused(id, _) => self.client.remove(id),
                _ => {}
            }
        }
    }

    /// Whether there is nothing to do any more.
    pub fn is_over(&self, now: Instant) -> bool {
        self.client.flows.is_empty() || self.until.is_some_and(|until| until <= now)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let until = self.until?;
        Some(self.client.next_timeout().map_or(until, |at| at.min(until)))
    }
}
